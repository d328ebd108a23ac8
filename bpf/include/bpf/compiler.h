/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_BPF_COMPILER_H
#define RELOADLAB_BPF_COMPILER_H

#define NULL ((void *)0)

#define __always_inline	inline __attribute__((always_inline))
#define __maybe_unused	__attribute__((unused))
#define __packed	__attribute__((packed))
#define __section(name)	__attribute__((section(name), used))

#define __stringify_arg(x)	#x
#define __stringify(x)		__stringify_arg(x)

#define memcpy	__builtin_memcpy

#endif /* RELOADLAB_BPF_COMPILER_H */
