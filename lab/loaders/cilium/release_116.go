// SPDX-License-Identifier: Apache-2.0

//go:build cilium116

package main

import (
	"log/slog"
	"os"

	"github.com/spf13/afero"

	"github.com/cilium/cilium/pkg/datapath/linux/config"
	"github.com/cilium/cilium/pkg/datapath/linux/config/defines"
	"github.com/cilium/cilium/pkg/datapath/linux/sysctl"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
)

const releaseName = "cilium 1.16.5"

func newWriter(n *node) (datapath.ConfigWriter, error) {
	return config.NewHeaderfileWriter(config.WriterParams{
		Log:              slog.New(slog.NewTextHandler(os.Stderr, nil)),
		NodeMap:          nodeMap{},
		NodeExtraDefines: []defines.Map{tunnelDefines(n)},
		Sysctl:           sysctl.NewDirectSysctl(afero.NewOsFs(), "/proc"),
	})
}
