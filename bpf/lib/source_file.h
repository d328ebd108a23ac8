/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef RELOADLAB_SOURCE_FILE_H
#define RELOADLAB_SOURCE_FILE_H

#define SOURCE_IS(name)	(!__builtin_strcmp(__FILE_NAME__, name))

/*
 * The file in which this word stands, as a number; 0 if it has none. Up to 105 they are
 * Cilium's, whose releases differ above; ours are from 120 on, 127 being the last.
 * lab/abi/notifications.py has them too.
 */
#define SOURCE_FILE \
	(SOURCE_IS("bpf_host.c") ? 1 : \
	 SOURCE_IS("bpf_lxc.c") ? 2 : \
	 SOURCE_IS("bpf_overlay.c") ? 3 : \
	 SOURCE_IS("bpf_xdp.c") ? 4 : \
	 SOURCE_IS("arp.h") ? 101 : \
	 SOURCE_IS("icmp6.h") ? 104 : \
	 SOURCE_IS("conntrack.h") ? 120 : \
	 SOURCE_IS("delivery.h") ? 121 : \
	 SOURCE_IS("eth.h") ? 122 : \
	 SOURCE_IS("ip.h") ? 123 : \
	 SOURCE_IS("l4.h") ? 124 : \
	 SOURCE_IS("policy.h") ? 125 : \
	 SOURCE_IS("encap.h") ? 126 : 0)

#endif /* RELOADLAB_SOURCE_FILE_H */
