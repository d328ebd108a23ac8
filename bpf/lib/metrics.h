/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_METRICS_H
#define RELOADLAB_METRICS_H

#include "common.h"

enum metric_dir {
	METRIC_INGRESS = 1,	/* towards a pod, or into the node */
	METRIC_EGRESS = 2,
	METRIC_SERVICE = 3,
};

/* Reasons that are no drop; those that are stand in drop.h. */
#define REASON_FORWARDED	0
#define REASON_PLAINTEXT	3

struct metrics_key {
	__u8 reason;
	__u8 dir : 2,
	     pad : 6;
	__u16 reserved[3];
};

struct metrics_value {
	__u64 count;
	__u64 bytes;
};

/* One pair of counters per CPU; a reader adds them up. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, struct metrics_key);
	__type(value, struct metrics_value);
	__uint(max_entries, METRICS_MAP_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} METRICS_MAP __maps_btf;

static __always_inline void update_metrics(const struct __ctx_buff *ctx, __u8 reason, enum metric_dir dir)
{
	struct metrics_key key = { .reason = reason, .dir = (__u8)dir };
	struct metrics_value *value = map_lookup_elem(&METRICS_MAP, &key);

	if (value) {
		/* Not atomic: this CPU's copy, and bottom halves are off. */
		value->count++;
		value->bytes += ctx_full_len(ctx);
	} else {
		struct metrics_value first = { .count = 1, .bytes = ctx_full_len(ctx) };

		map_update_elem(&METRICS_MAP, &key, &first, BPF_ANY);
	}
}

#endif /* RELOADLAB_METRICS_H */
