// SPDX-License-Identifier: Apache-2.0

//go:build cilium117 || cilium118 || cilium119

package loader

import (
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/option"
)

// ReloadlabInit writes the headers of the node, and has the template cache know of its configuration.
func (l *ReloadlabLoader) ReloadlabInit(config *datapath.LocalNodeConfiguration) error {
	l.node = config
	if err := l.writeNodeConfigHeader(config); err != nil {
		return err
	}
	if err := l.writeNetdevHeader(option.Config.StateDir); err != nil {
		return err
	}
	return l.templateCache.UpdateDatapathHash(config)
}
