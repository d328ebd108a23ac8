// SPDX-License-Identifier: Apache-2.0

//go:build cilium114 || cilium114_18

package loader

import "context"

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
