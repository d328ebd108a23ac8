/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_FILTER_CONFIG_H
#define RELOADLAB_FILTER_CONFIG_H

/*
 * The prefilter: macros for the names and sizes of its maps (lib/config.h). A compile
 * without a generated header finds this file, and takes the defaults.
 */

#endif /* RELOADLAB_FILTER_CONFIG_H */
