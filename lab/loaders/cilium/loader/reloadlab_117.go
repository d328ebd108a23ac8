// SPDX-License-Identifier: Apache-2.0

//go:build cilium117

package loader

import (
	"context"

	"github.com/cilium/cilium/pkg/datapath/tunnel"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
)

// ReloadlabNew returns a loader; option.Config must be complete.
func ReloadlabNew(writer datapath.ConfigWriter) *ReloadlabLoader {
	return &ReloadlabLoader{loader: newLoader(Params{
		CompilationLock: NewCompilationLock(),
		ConfigWriter:    writer,
	})}
}

// ReloadlabOverlay compiles and loads the programs of a tunnel.
func (l *ReloadlabLoader) ReloadlabOverlay(ctx context.Context, protocol string) error {
	return reinitializeOverlay(ctx, tunnel.NewTestConfig(tunnel.Protocol(protocol)))
}
