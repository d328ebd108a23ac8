/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_CTX_SKB_H
#define RELOADLAB_CTX_SKB_H

/* What a program of clsact is given of a packet; ctx_xdp.h has the same for XDP. */
#define __ctx_buff	__sk_buff
#define CTX_ACT_DROP	TC_ACT_SHOT

static __always_inline __u32 ctx_full_len(const struct __sk_buff *ctx)
{
	return ctx->len;
}

static __always_inline __u32 ctx_get_ifindex(const struct __sk_buff *ctx)
{
	return ctx->ifindex;
}

static __always_inline __u32 ctx_get_hash(struct __sk_buff *ctx)
{
	return get_hash_recalc(ctx);
}

/*
 * In assembly, because a compiler that computes the address of cb once and uses it
 * twice makes a program that the verifier refuses: the context is only accessible by
 * the context pointer itself plus a constant.
 */
#define CB_OFF(word) (__builtin_offsetof(struct __sk_buff, cb) + (word) * sizeof(__u32))

static __always_inline void cb_store(struct __sk_buff *ctx, const enum cb_word word, __u32 value)
{
	asm volatile("*(u32 *)(%0 + %1) = %2" :: "r"(ctx), "i"(CB_OFF(word)), "r"((__u64)value) : "memory");
}

static __always_inline __u32 cb_load(const struct __sk_buff *ctx, const enum cb_word word)
{
	__u64 value;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(value) : "r"(ctx), "i"(CB_OFF(word)));
	return (__u32)value;
}

#endif /* RELOADLAB_CTX_SKB_H */
