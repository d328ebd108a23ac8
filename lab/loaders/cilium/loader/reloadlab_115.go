// SPDX-License-Identifier: Apache-2.0

//go:build cilium115

package loader

import (
	"context"

	"github.com/vishvananda/netlink"

	"github.com/cilium/cilium/pkg/bpf"
	"github.com/cilium/cilium/pkg/datapath/tunnel"
)

// ReloadlabOverlay compiles and loads the programs of a tunnel.
func (l *Loader) ReloadlabOverlay(ctx context.Context, protocol string) error {
	return l.reinitializeOverlay(ctx, tunnel.NewTestConfig(tunnel.Protocol(protocol)))
}

// ReloadlabOverlayObject loads the programs of a tunnel from an object file that is there.
func ReloadlabOverlayObject(ctx context.Context, ifname, object string) error {
	device, err := netlink.LinkByName(ifname)
	if err != nil {
		return err
	}
	finalize, err := replaceDatapath(ctx, replaceDatapathOptions{
		device: ifname,
		elf:    object,
		programs: []progDefinition{
			{progName: symbolFromOverlay, direction: dirIngress},
			{progName: symbolToOverlay, direction: dirEgress},
		},
		linkDir: bpffsDeviceLinksDir(bpf.CiliumPath(), device),
	})
	if err == nil {
		finalize()
	}
	return err
}
