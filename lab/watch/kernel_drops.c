/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tells of packets that the kernel drops in the network namespaces of `watched`.
 *
 * A raw tracepoint gets the kernel's own structs. Where their fields are differs from
 * kernel to kernel: the OFFSET_ macros come from the running kernel's BTF.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/compiler.h>
#include <bpf/maps.h>

#define PACKET		144	/* two IP headers with what is between them in VXLAN, and ports */
#define IFNAMSIZ	16
#define CURRENT_CPU	0xffffffffULL

struct drop {
	__u64 time;		/* CLOCK_MONOTONIC */
	__u64 location;		/* the instruction behind the call that freed the packet */
	__u32 netns;		/* inode number */
	__u32 reason;		/* enum skb_drop_reason */
	__u32 ifindex;
	__u16 protocol;		/* EtherType, network byte order */
	__u16 length;		/* of `packet` */
	char ifname[IFNAMSIZ];
	__u8 packet[PACKET];	/* from the network header on */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
	__uint(max_entries, __NR_CPUS__);
} kernel_drops __maps_btf;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 4096);
} watched __maps_btf;

static void *(*const map_lookup_elem)(const void *map, const void *key) = (void *)1;
static __u64 (*const ktime_get_ns)(void) = (void *)5;
static long (*const perf_event_output)(void *ctx, const void *map, __u64 flags, const void *data,
				       __u64 size) = (void *)25;
static long (*const probe_read_kernel)(void *to, __u32 size, const void *from) = (void *)113;

#define READ(to, base, offset)	probe_read_kernel(&(to), sizeof(to), (const char *)(base) + (offset))

/* The inode number of the namespace to which the pointer at `field` leads, 0 if it is not watched. */
static __always_inline __u32 netns_at(const void *base, __u32 field)
{
	const void *net = NULL;
	__u32 inode = 0;

	if (!base || READ(net, base, field) || READ(inode, net, OFFSET_NET_INODE))
		return 0;
	return map_lookup_elem(&watched, &inode) ? inode : 0;
}

__section("raw_tracepoint/kfree_skb")
int tell_drop(__u64 *args)
{
	const void *skb = (const void *)args[0];
	const void *dev = NULL, *sk = NULL, *head = NULL;
	struct drop drop = {};
	__u16 network = 0;

	/* For a datagram in a receive queue this is no pointer: the read from there fails, or finds no namespace. */
	READ(dev, skb, OFFSET_SKB_DEV);
	drop.netns = netns_at(dev, OFFSET_DEV_NET);
	if (drop.netns) {
		READ(drop.ifindex, dev, OFFSET_DEV_IFINDEX);
		READ(drop.ifname, dev, OFFSET_DEV_NAME);
	} else {
		READ(sk, skb, OFFSET_SKB_SK);
		drop.netns = netns_at(sk, OFFSET_SOCK_NET);
	}
#ifdef HAS_RX_SK
	if (!drop.netns)
		drop.netns = netns_at((const void *)args[3], OFFSET_SOCK_NET);
#endif
	if (!drop.netns)
		return 0;
	drop.time = ktime_get_ns();
	drop.location = args[1];
	drop.reason = (__u32)args[2];
	READ(drop.protocol, skb, OFFSET_SKB_PROTOCOL);
	READ(head, skb, OFFSET_SKB_HEAD);
	READ(network, skb, OFFSET_SKB_NETWORK_HEADER);
	/* The head of a packet is longer than its headers, so this reads past none that matters. */
	if (!READ(drop.packet, head, network))
		drop.length = PACKET;
	perf_event_output(args, &kernel_drops, CURRENT_CPU, &drop, sizeof(drop));
	return 0;
}

char LICENSE[] __section("license") = "Dual BSD/GPL";
