/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_BPF_ENDIAN_H
#define RELOADLAB_BPF_ENDIAN_H

#include <linux/types.h>

/* Objects are built for little-endian hosts only; the headers' bit fields rely on it too. */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
# error "build with -target bpf on a little-endian host, or -target bpfel"
#endif /* __BYTE_ORDER__ */

/* Usable in case labels and in initialisers of static data. */
#define bpf_htons(x)	((__be16)__builtin_bswap16((__u16)(x)))
#define bpf_ntohs(x)	((__u16)__builtin_bswap16((__be16)(x)))
#define bpf_htonl(x)	((__be32)__builtin_bswap32((__u32)(x)))
#define bpf_ntohl(x)	((__u32)__builtin_bswap32((__be32)(x)))

#endif /* RELOADLAB_BPF_ENDIAN_H */
