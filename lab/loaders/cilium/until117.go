// SPDX-License-Identifier: Apache-2.0

//go:build cilium116 || cilium117

package main

import (
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/maps/ctmap"
	"github.com/cilium/cilium/pkg/option"
)

func setRelease(*node) {
	option.Config.NodePortAlg = option.NodePortAlgRandom
	identity.SetLocalNodeID(uint32(identity.ReservedIdentityRemoteNode))
	ctmap.InitMapInfo(true, true, false)
}

// complete adds what has another name in later releases.
func complete(configuration *datapath.LocalNodeConfiguration) error {
	configuration.LoopbackIPv4 = loopbackIPv4.AsSlice()
	return nil
}
