// SPDX-License-Identifier: Apache-2.0

//go:build cilium116 || cilium117 || cilium118

package loader

import datapath "github.com/cilium/cilium/pkg/datapath/types"

// ReloadlabUnload takes a pod's programs and routes away. It cannot fail: the log says what stays.
func (l *ReloadlabLoader) ReloadlabUnload(ep datapath.Endpoint) error {
	l.Unload(ep)
	return nil
}
