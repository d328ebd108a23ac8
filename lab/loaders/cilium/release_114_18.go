// SPDX-License-Identifier: Apache-2.0

//go:build cilium114_18

package main

import (
	"fmt"
	"io"

	"github.com/cilium/cilium/pkg/datapath/linux/config"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/maps/ctmap"
	"github.com/cilium/cilium/pkg/mtu"
	"github.com/cilium/cilium/pkg/option"
)

const releaseName = "cilium 1.14.18"

// Without rollback: policy programs, and what was attached before a failure, stay.
var abilities = []string{"pod", "host", "overlay", "endpoint-routes", "unload", "cancel", "own-calls-maps"}

func setRelease(n *node) {
	ctmap.InitMapInfo(ctEntriesTCP, ctEntriesAny, true, true, false)
	option.Config.TunnelProtocol = option.TunnelVXLAN
	if n.Tunnel != nil {
		option.Config.TunnelProtocol, option.Config.TunnelPort = n.Tunnel.Protocol, n.Tunnel.Port
	}
}

func newWriter(*node) (datapath.ConfigWriter, error) { return &config.HeaderfileWriter{}, nil }

func newMTU(n *node) mtu.Configuration {
	return mtu.NewConfiguration(0, false, n.Tunnel != nil, false, false, n.MTU, nil)
}

// writeInterfaces adds to node_config.h what bpf/init.sh of this release adds.
func writeInterfaces(w io.Writer, n *node) error {
	if n.Tunnel == nil {
		return nil
	}
	_, err := fmt.Fprintf(w, "#define ENCAP_IFINDEX %d\n", n.Tunnel.Ifindex)
	return err
}

// askForEgress has devices get an egress program, by one of the features that need it.
func askForEgress(yes bool) { option.Config.EnableBandwidthManager = yes }
