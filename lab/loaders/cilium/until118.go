// SPDX-License-Identifier: Apache-2.0

//go:build cilium116 || cilium117 || cilium118

package main

import (
	"github.com/cilium/cilium/pkg/datapath/loader"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
)

func newLoader(writer datapath.ConfigWriter) (*loader.ReloadlabLoader, error) {
	return loader.ReloadlabNew(writer), nil
}
