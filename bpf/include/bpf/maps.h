/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_BPF_MAPS_H
#define RELOADLAB_BPF_MAPS_H

#include <linux/bpf.h>
#include <bpf/compiler.h>

/* BTF definitions: the numbers are the lengths of array types, which BTF keeps. */
#define __uint(name, val)	int (*name)[val]
#define __type(name, val)	typeof(val) *name
#define LIBBPF_PIN_BY_NAME	1

#define __maps_btf	__section(".maps")

/*
 * A definition as iproute2's loader reads it, nine words in section "maps". Only this
 * form carries an id, to which the numbered sections of tail-call programs refer.
 */
struct bpf_elf_map {
	__u32 type;
	__u32 size_key;
	__u32 size_value;
	__u32 max_elem;
	__u32 flags;
	__u32 id;
	__u32 pinning;
	__u32 inner_id;
	__u32 inner_idx;
};

#define PIN_GLOBAL_NS	2

#define __maps_legacy	__section("maps")

#endif /* RELOADLAB_BPF_MAPS_H */
