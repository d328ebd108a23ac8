// SPDX-License-Identifier: Apache-2.0

//go:build cilium114

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/cilium/cilium/pkg/datapath/linux/config"
	"github.com/cilium/cilium/pkg/datapath/loader"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/mac"
	"github.com/cilium/cilium/pkg/maps/ctmap"
	"github.com/cilium/cilium/pkg/mtu"
	ciliumnode "github.com/cilium/cilium/pkg/node"
	"github.com/cilium/cilium/pkg/option"
)

// Cilium as its main branch was in April 2023, between 1.13 and 1.14 (40935318e344424be1ea96510c96427aef5134c3).
const releaseName = "cilium 4093531"

// Without rollback, for this release puts back a part of what it has done, and own-calls-maps: it reuses them.
var abilities = []string{"pod", "host", "overlay", "endpoint-routes", "unload", "cancel"}

func setRelease(n *node) {
	ctmap.InitMapInfo(ctEntriesTCP, ctEntriesAny, true, true, false)
	if n.Tunnel != nil {
		option.Config.TunnelProtocol, option.Config.TunnelPort = n.Tunnel.Protocol, n.Tunnel.Port
	}
}

func setNodeAddresses(n *node) {
	ciliumnode.SetIPv4(n.RouterIPv4.AsSlice())
	ciliumnode.SetIPv6(n.RouterIPv6.AsSlice())
}

func newWriter(*node) (datapath.ConfigWriter, error) { return &config.HeaderfileWriter{}, nil }

func newMTU(n *node) mtu.Configuration {
	return mtu.NewConfiguration(0, false, n.Tunnel != nil, false, n.MTU, nil)
}

// writeInterfaces adds to node_config.h what bpf/init.sh of this release adds: interfaces, and the range of ports.
func writeInterfaces(w io.Writer, n *node) error {
	ports, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return err
	}
	first := strings.Fields(string(ports))[0]
	define := func(name, value string) { fmt.Fprintf(w, "#define %s %s\n", name, value) }
	// In the same order each time: templates are found by a hash of this text.
	addresses := []struct{ name, text string }{
		{"CILIUM_NET_MAC", n.CiliumNet.MAC},
		{"HOST_IFINDEX_MAC", n.CiliumHost.MAC},
	}
	for _, each := range addresses {
		address, err := mac.ParseMAC(each.text)
		if err != nil {
			return err
		}
		define(each.name, fmt.Sprintf("{ .addr = %s }", mac.CArrayString(net.HardwareAddr(address))))
	}
	define("HOST_IFINDEX", fmt.Sprint(n.CiliumNet.Ifindex))
	define("CILIUM_IFINDEX", fmt.Sprint(n.CiliumHost.Ifindex))
	define("EPHEMERAL_MIN", first)
	if n.Tunnel != nil {
		define("TUNNEL_MODE", "1")
		define("ENCAP_IFINDEX", fmt.Sprint(n.Tunnel.Ifindex))
	}
	return nil
}

// askForEgress has devices get an egress program, by one of the features that need it.
func askForEgress(yes bool) { option.Config.EnableBandwidthManager = yes }

// unload removes routes by the loader, and filters, which in a cluster go with the interface.
func unload(l *loader.Loader, target *stub) error {
	l.Unload(target)
	for _, direction := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		err := loader.RemoveTCFilters(target.InterfaceName(), direction)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
