/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_BPF_HELPERS_H
#define RELOADLAB_BPF_HELPERS_H

#include <linux/bpf.h>
#include <bpf/compiler.h>

/*
 * Helper functions of the kernel: a call instruction with the helper's number. The
 * numbers are those of enum bpf_func_id; names are the kernel's without "bpf_".
 */
#define BPF_HELPER(ret, name, ...) \
	static ret (*const name)(__VA_ARGS__) __maybe_unused

BPF_HELPER(void *, map_lookup_elem, const void *map, const void *key) = (void *)1;
BPF_HELPER(int, map_update_elem, const void *map, const void *key, const void *value,
	   __u64 flags) = (void *)2;
BPF_HELPER(__u64, ktime_get_ns, void) = (void *)5;
BPF_HELPER(int, skb_store_bytes, struct __sk_buff *ctx, __u32 off, const void *from, __u32 len,
	   __u64 flags) = (void *)9;
BPF_HELPER(int, l3_csum_replace, struct __sk_buff *ctx, __u32 off, __u64 from, __u64 to,
	   __u64 flags) = (void *)10;
BPF_HELPER(void, tail_call, void *ctx, const void *map, __u32 index) = (void *)12;
BPF_HELPER(int, skb_get_tunnel_key, struct __sk_buff *ctx, struct bpf_tunnel_key *to, __u32 size,
	   __u64 flags) = (void *)20;
BPF_HELPER(int, skb_set_tunnel_key, struct __sk_buff *ctx, const struct bpf_tunnel_key *from, __u32 size,
	   __u64 flags) = (void *)21;
BPF_HELPER(int, redirect, int ifindex, __u64 flags) = (void *)23;
BPF_HELPER(int, perf_event_output, void *ctx, const void *map, __u64 flags, const void *data,
	   __u64 size) = (void *)25;
BPF_HELPER(int, skb_load_bytes, const struct __sk_buff *ctx, __u32 off, void *to,
	   __u32 len) = (void *)26;
BPF_HELPER(__s64, csum_diff, const void *from, __u32 from_size, const void *to, __u32 to_size,
	   __wsum seed) = (void *)28;
BPF_HELPER(int, skb_change_type, struct __sk_buff *ctx, __u32 type) = (void *)32;
BPF_HELPER(__u32, get_hash_recalc, struct __sk_buff *ctx) = (void *)34;
BPF_HELPER(int, skb_change_tail, struct __sk_buff *ctx, __u32 len, __u64 flags) = (void *)38;
BPF_HELPER(__u64, ktime_get_coarse_ns, void) = (void *)160;	/* since Linux 5.11 */
BPF_HELPER(__u64, xdp_get_buff_len, const struct xdp_md *ctx) = (void *)188;

#undef BPF_HELPER

#endif /* RELOADLAB_BPF_HELPERS_H */
