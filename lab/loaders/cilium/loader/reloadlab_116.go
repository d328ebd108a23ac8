// SPDX-License-Identifier: Apache-2.0

//go:build cilium116

package loader

import (
	"context"

	"github.com/cilium/cilium/pkg/datapath/loader/metrics"
	"github.com/cilium/cilium/pkg/datapath/tunnel"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/option"
)

// ReloadlabLoader is a loader without an agent around it.
type ReloadlabLoader struct{ *loader }

// ReloadlabNew returns one; option.Config must be complete.
func ReloadlabNew(writer datapath.ConfigWriter) *ReloadlabLoader {
	return &ReloadlabLoader{newLoader(Params{
		Config:          DefaultConfig,
		CompilationLock: NewCompilationLock(),
		ConfigWriter:    writer,
	})}
}

// ReloadlabInit writes the headers of the node, and has the template cache know of its configuration.
func (l *ReloadlabLoader) ReloadlabInit(config *datapath.LocalNodeConfiguration) error {
	l.nodeConfig.Store(config)
	if err := l.writeNodeConfigHeader(config); err != nil {
		return err
	}
	if err := l.writeNetdevHeader(option.Config.StateDir); err != nil {
		return err
	}
	return l.templateCache.UpdateDatapathHash(config)
}

// ReloadlabReload reloads a pod, the health endpoint or the host.
func (l *ReloadlabLoader) ReloadlabReload(ctx context.Context, ep datapath.Endpoint, stats *metrics.SpanStat) error {
	_, err := l.ReloadDatapath(ctx, ep, stats)
	return err
}

// ReloadlabOverlay compiles and loads the programs of a tunnel.
func (l *ReloadlabLoader) ReloadlabOverlay(ctx context.Context, protocol string) error {
	return l.reinitializeOverlay(ctx, tunnel.NewTestConfig(tunnel.Protocol(protocol)))
}
