// SPDX-License-Identifier: Apache-2.0

//go:build cilium115 || cilium116 || cilium117 || cilium118 || cilium119

package main

import (
	"fmt"
	"strings"
)

// maxConnectedClusters is what an agent has by default; the width of an identity follows from it.
const maxConnectedClusters = 255

// tunnelDefines returns the macros that another part of an agent tells the writer of headers.
func tunnelDefines(n *node) map[string]string {
	if n.Tunnel == nil {
		return nil
	}
	numbers := map[string]string{"vxlan": "1", "geneve": "2"}
	found := map[string]string{
		"TUNNEL_PROTOCOL": numbers[n.Tunnel.Protocol],
		"TUNNEL_PORT":     fmt.Sprint(n.Tunnel.Port),
		"ENCAP_IFINDEX":   fmt.Sprint(n.Tunnel.Ifindex),
	}
	for protocol, number := range numbers {
		found["TUNNEL_PROTOCOL_"+strings.ToUpper(protocol)] = number
	}
	return found
}
