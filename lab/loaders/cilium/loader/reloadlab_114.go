// SPDX-License-Identifier: Apache-2.0

//go:build cilium114

package loader

import (
	"context"

	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/elf"
)

// ReloadlabInit makes the template cache, or has it know of another configuration of the node.
func (l *Loader) ReloadlabInit(writer datapath.ConfigWriter, config *datapath.LocalNodeConfiguration) {
	l.init(writer, config)
}

// ReloadlabIgnoreSymbols does of init what an object file needs that is there: what it has besides is not warned of.
func ReloadlabIgnoreSymbols() {
	elf.IgnoreSymbolPrefixes(ignoredELFPrefixes)
}

// ReloadlabOverlay compiles and loads the programs of a tunnel.
func (l *Loader) ReloadlabOverlay(ctx context.Context, protocol string) error {
	return l.reinitializeOverlay(ctx, protocol)
}

// ReloadlabOverlayObject loads the programs of a tunnel from an object file that is there.
func ReloadlabOverlayObject(ctx context.Context, ifname, object string) error {
	finalize, err := replaceDatapath(ctx, ifname, object, []progDefinition{
		{progName: symbolFromOverlay, direction: dirIngress},
		{progName: symbolToOverlay, direction: dirEgress},
	}, "")
	if err == nil {
		finalize()
	}
	return err
}
