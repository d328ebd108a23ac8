/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_UTILS_H
#define RELOADLAB_UTILS_H

/* What a generated header needs; each of them includes this file, by this name. */
#include <linux/types.h>
#include <bpf/compiler.h>
#include <bpf/endian.h>
#include "static_data.h"

#endif /* RELOADLAB_UTILS_H */
