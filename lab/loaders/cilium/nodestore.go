// SPDX-License-Identifier: Apache-2.0

//go:build cilium114_18 || cilium115

package main

import (
	"github.com/cilium/cilium/pkg/datapath/loader"
	ciliumnode "github.com/cilium/cilium/pkg/node"
	"github.com/cilium/cilium/pkg/node/addressing"
	"github.com/cilium/cilium/pkg/node/types"
)

// setNodeAddresses makes the store that these releases keep the node in; an agent fills it from Kubernetes.
func setNodeAddresses(n *node) {
	ciliumnode.SetTestLocalNodeStore()
	ciliumnode.UpdateLocalNodeInTest(func(local *ciliumnode.LocalNode) {
		local.IPAddresses = []types.Address{
			{Type: addressing.NodeInternalIP, IP: n.RouterIPv4.AsSlice()},
			{Type: addressing.NodeInternalIP, IP: n.RouterIPv6.AsSlice()},
		}
	})
}

// unload cannot fail: the loader writes to its log what it did not remove.
func unload(l *loader.Loader, target *stub) error {
	l.Unload(target)
	return nil
}
