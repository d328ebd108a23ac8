/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_LINUX_TYPES_H
#define RELOADLAB_LINUX_TYPES_H

/* The fixed-width types of the kernel's headers, for a target that has no libc. */
typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef signed short __s16;
typedef unsigned int __u32;
typedef signed int __s32;
typedef unsigned long long __u64;
typedef signed long long __s64;

/* Network byte order. */
typedef __u16 __be16;
typedef __u32 __be32;

/* A checksum as it stands in a header, and one that is not folded yet. */
typedef __u16 __sum16;
typedef __u32 __wsum;

typedef _Bool bool;
#define true	1
#define false	0

#endif /* RELOADLAB_LINUX_TYPES_H */
