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
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/maps/ctmap"
	"github.com/cilium/cilium/pkg/maps/nodemap"
	"github.com/cilium/cilium/pkg/option"
)

const releaseName = "cilium 1.16"

// Without rollback: policy programs, and what was attached before a failure, stay.
var abilities = []string{"pod", "host", "overlay", "endpoint-routes", "unload", "cancel", "tcx", "own-calls-maps"}

func setRelease(*node) {
	option.Config.NodePortAlg = option.NodePortAlgRandom
	identity.SetLocalNodeID(uint32(identity.ReservedIdentityRemoteNode))
	ctmap.InitMapInfo(true, true, false)
}

func newWriter(n *node) (datapath.ConfigWriter, error) {
	return config.NewHeaderfileWriter(config.WriterParams{
		Log:              slog.New(slog.NewTextHandler(os.Stderr, nil)),
		NodeMap:          nodeMap{},
		NodeExtraDefines: []defines.Map{tunnelDefines(n)},
		Sysctl:           sysctl.NewDirectSysctl(afero.NewOsFs(), "/proc"),
	})
}

// nodeMap answers what the header wants to know of the map; nobody fills it.
type nodeMap struct{ nodemap.MapV2 }

func (nodeMap) Size() uint32 { return nodemap.DefaultMaxEntries }
