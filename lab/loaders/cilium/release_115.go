// SPDX-License-Identifier: Apache-2.0

//go:build cilium115

package main

import (
	"io"
	"net"

	"github.com/cilium/cilium/pkg/datapath/linux/config"
	"github.com/cilium/cilium/pkg/datapath/linux/config/defines"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/maps/ctmap"
	"github.com/cilium/cilium/pkg/maps/nodemap"
	"github.com/cilium/cilium/pkg/mtu"
	"github.com/cilium/cilium/pkg/option"
)

const releaseName = "cilium 1.15.12"

// Without rollback: policy programs, and what was attached before a failure, stay.
var abilities = []string{"pod", "host", "overlay", "endpoint-routes", "unload", "cancel", "own-calls-maps"}

func setRelease(*node) {
	ctmap.InitMapInfo(true, true, false)
	option.Config.MaxConnectedClusters = maxConnectedClusters
}

func newWriter(n *node) (datapath.ConfigWriter, error) {
	return config.NewHeaderfileWriter(config.WriterParams{
		Log:              logging.DefaultLogger,
		NodeMap:          nodeMap{},
		NodeAddressing:   noAddresses{},
		NodeExtraDefines: []defines.Map{tunnelDefines(n)},
	})
}

// nodeMap answers what the header wants to know of the map; nobody fills it.
type nodeMap struct{ nodemap.Map }

func (nodeMap) Size() uint32 { return nodemap.DefaultMaxEntries }

// noAddresses are the addresses of a node without node ports, which a comment in the header lists.
type noAddresses struct{ datapath.NodeAddressing }

func (noAddresses) IPv4() datapath.NodeAddressingFamily { return noFamily{} }
func (noAddresses) IPv6() datapath.NodeAddressingFamily { return noFamily{} }

type noFamily struct{ datapath.NodeAddressingFamily }

func (noFamily) LoadBalancerNodeAddresses() []net.IP { return nil }

func newMTU(n *node) datapath.MTUConfiguration {
	configuration := mtu.NewConfiguration(0, false, n.Tunnel != nil, false, false, n.MTU, nil)
	return &configuration
}

// writeInterfaces adds nothing: the writer of this release has all.
func writeInterfaces(io.Writer, *node) error { return nil }

// askForEgress has devices get an egress program.
func askForEgress(yes bool) { option.Config.ForceDeviceRequired = yes }
