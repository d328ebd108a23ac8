/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_STATIC_DATA_H
#define RELOADLAB_STATIC_DATA_H

#include <linux/types.h>
#include <bpf/endian.h>

/*
 * Constants that the loader replaces without compiling again.
 *
 * DEFINE_* put a word into .data. The code never reads it: fetch_* load the *address*
 * of the word, which is a 16-byte instruction with a relocation, and the loader turns
 * that instruction into a load of the 32-bit word stored there. So no data map exists,
 * and in an object whose relocations were not resolved the value is an offset.
 *
 * No word may be zero: clang would put it into .bss, which the loader reads as 0.
 *
 * FOR_LIBBPF compiles the values in, for loaders that cannot do this (tc, bpftool).
 */
#ifdef FOR_LIBBPF
# define DEFINE_U16(name, value)	static const __u16 name = (value)
# define DEFINE_U32(name, value)	static const __u32 name = (value)
# define STATIC_WORD(name)		((__u64)(name))
#else
# define DEFINE_U16(name, value)	volatile __u16 name = (value)
# define DEFINE_U32(name, value)	volatile __u32 name = (value)
# define STATIC_WORD(name)		((__u64)&(name))
#endif /* FOR_LIBBPF */

/* Bytes of `b0 b1 b2 b3` in this order, as one word. */
#define STATIC_BYTES(b0, b1, b2, b3) \
	bpf_htonl((__u32)(b0) << 24 | (__u32)(b1) << 16 | (__u32)(b2) << 8 | (__u32)(b3))

/* Four words, name_1 .. name_4. */
#define DEFINE_IPV6(name, b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15) \
	DEFINE_U32(name##_1, STATIC_BYTES(b0, b1, b2, b3)); \
	DEFINE_U32(name##_2, STATIC_BYTES(b4, b5, b6, b7)); \
	DEFINE_U32(name##_3, STATIC_BYTES(b8, b9, b10, b11)); \
	DEFINE_U32(name##_4, STATIC_BYTES(b12, b13, b14, b15))

/* Two words: name_1 has the first four bytes, name_2 the last two in its lower half. */
#define DEFINE_MAC(name, b0, b1, b2, b3, b4, b5) \
	DEFINE_U32(name##_1, STATIC_BYTES(b0, b1, b2, b3)); \
	DEFINE_U32(name##_2, STATIC_BYTES(b4, b5, 0, 0))

/*
 * The empty asm hides where the value comes from: the compiler knows that the address
 * of a word has two low bits of zero and is never NULL, and would optimise by it.
 */
#define fetch_u32(name) \
	({ \
		__u64 fetched_ = STATIC_WORD(name); \
		asm("" : "+r"(fetched_)); \
		(__u32)fetched_; \
	})
#define fetch_u16(name)		((__u16)fetch_u32(name))
#define fetch_u32_i(name, i)	fetch_u32(name##_##i)

/* Initialisers: of an array of four words, of union macaddr. */
#define fetch_ipv6(name) \
	fetch_u32_i(name, 1), fetch_u32_i(name, 2), fetch_u32_i(name, 3), fetch_u32_i(name, 4)
#define fetch_mac(name) \
	{ { fetch_u32_i(name, 1), (__u16)fetch_u32_i(name, 2) } }

#endif /* RELOADLAB_STATIC_DATA_H */
