// SPDX-License-Identifier: Apache-2.0

//go:build cilium118 || cilium119

package loader

import (
	"context"

	"github.com/cilium/cilium/pkg/datapath/tunnel"
)

// ReloadlabOverlay compiles and loads the programs of a tunnel.
func (l *ReloadlabLoader) ReloadlabOverlay(ctx context.Context, protocol string) error {
	return reinitializeOverlay(ctx, l.logger, l.node, tunnel.NewTestConfig(tunnel.EncapProtocol(protocol)))
}
