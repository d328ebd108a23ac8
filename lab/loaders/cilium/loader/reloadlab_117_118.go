// SPDX-License-Identifier: Apache-2.0

//go:build cilium117 || cilium118

package loader

import (
	"context"

	"github.com/cilium/cilium/pkg/datapath/loader/metrics"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
)

// ReloadlabLoader is a loader without an agent around it.
type ReloadlabLoader struct {
	*loader
	node *datapath.LocalNodeConfiguration
}

// ReloadlabReload reloads a pod, the health endpoint or the host.
func (l *ReloadlabLoader) ReloadlabReload(ctx context.Context, ep datapath.Endpoint, stats *metrics.SpanStat) error {
	_, err := l.ReloadDatapath(ctx, ep, l.node, stats)
	return err
}
