/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_NETDEV_CONFIG_H
#define RELOADLAB_NETDEV_CONFIG_H

/*
 * The overlay, where no generated header comes first. Its object is compiled for the
 * node, so only the number of the load is substituted.
 */
#include "lib/utils.h"

#ifndef SECLABEL
# define SECLABEL 2
#endif /* SECLABEL */
#ifndef CALLS_MAP
# define CALLS_MAP cilium_calls_overlay_2
#endif /* CALLS_MAP */

#ifndef GENERATION
DEFINE_U32(GENERATION, 1);
# define GENERATION fetch_u32(GENERATION)
#endif /* GENERATION */

#define LOCAL_DELIVERY_METRICS 1

#endif /* RELOADLAB_NETDEV_CONFIG_H */
