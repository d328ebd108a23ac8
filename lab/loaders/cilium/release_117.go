// SPDX-License-Identifier: Apache-2.0

//go:build cilium117

package main

import (
	"github.com/spf13/afero"

	"github.com/cilium/cilium/pkg/datapath/linux/config"
	"github.com/cilium/cilium/pkg/datapath/linux/config/defines"
	"github.com/cilium/cilium/pkg/datapath/linux/sysctl"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/maglev"
)

const releaseName = "cilium 1.17.0-rc.1"

func newWriter(n *node) (datapath.ConfigWriter, error) {
	return config.NewHeaderfileWriter(config.WriterParams{
		Log:              logging.DefaultSlogLogger,
		NodeMap:          nodeMap{},
		NodeExtraDefines: []defines.Map{tunnelDefines(n)},
		Sysctl:           sysctl.NewDirectSysctl(afero.NewOsFs(), "/proc"),
		// Seeds of a hash that only services use.
		Maglev: &maglev.Maglev{},
	})
}
