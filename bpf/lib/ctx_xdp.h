/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_CTX_XDP_H
#define RELOADLAB_CTX_XDP_H

/*
 * What a program of XDP is given of a packet, in the place of ctx_skb.h: the frame as it
 * came from the device, and nothing that the kernel knows of it.
 */
#define __ctx_buff	xdp_md
#define CTX_ACT_DROP	XDP_DROP

/* Only a program that says so is given frames in several pieces, as with an MTU of 9000. */
#ifdef HAVE_XDP_FRAGS
#define XDP_SECTION	"xdp.frags"
#else
#define XDP_SECTION	"xdp"
#endif /* HAVE_XDP_FRAGS */

static __always_inline __u32 ctx_full_len(const struct xdp_md *ctx)
{
#ifdef HAVE_XDP_FRAGS
	return (__u32)xdp_get_buff_len(ctx);
#else
	__u64 len = (const void *)(unsigned long)ctx->data_end - (const void *)(unsigned long)ctx->data;

	/* Pointers are subtracted in 64 bits, or the verifier refuses the program. */
	asm("" : "+r"(len));
	return (__u32)len;
#endif /* HAVE_XDP_FRAGS */
}

static __always_inline __u32 ctx_get_ifindex(const struct xdp_md *ctx)
{
	return ctx->ingress_ifindex;
}

static __always_inline __u32 ctx_get_hash(struct xdp_md *ctx __maybe_unused)
{
	return 0;
}

/*
 * The words of __sk_buff.cb, of which xdp_md has none. Pinned, as all loads must find what
 * the one has left that a chain began with.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, CB_WORDS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} XDP_SCRATCH_MAP __maps_btf;

static __always_inline void cb_store(struct xdp_md *ctx __maybe_unused, const enum cb_word word, __u32 value)
{
	__u32 key = word;
	__u32 *there = map_lookup_elem(&XDP_SCRATCH_MAP, &key);

	if (there)
		*there = value;
}

static __always_inline __u32 cb_load(const struct xdp_md *ctx __maybe_unused, const enum cb_word word)
{
	__u32 key = word;
	__u32 *there = map_lookup_elem(&XDP_SCRATCH_MAP, &key);

	return there ? *there : 0;
}

#endif /* RELOADLAB_CTX_XDP_H */
