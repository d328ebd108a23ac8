// SPDX-License-Identifier: Apache-2.0

//go:build cilium118 || cilium119

package main

import (
	"log/slog"

	"github.com/spf13/afero"

	"github.com/cilium/cilium/pkg/datapath/linux/config"
	"github.com/cilium/cilium/pkg/datapath/linux/config/defines"
	"github.com/cilium/cilium/pkg/datapath/linux/sysctl"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/loadbalancer"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/maglev"
	"github.com/cilium/cilium/pkg/option"
)

// fragments is the size of the maps of fragments, of which all objects have the definition.
const fragments = 8192

// sizes are macros that other parts of an agent provide. The maps are as large as those that the lab makes.
var sizes = defines.Map{
	"POLICY_MAP_SIZE":               "16384",
	"POLICY_STATS_MAP_SIZE":         "65536",
	"THROTTLE_MAP_SIZE":             "65536",
	"EGRESS_POLICY_MAP_SIZE":        "16384",
	"SRV6_POLICY_MAP_SIZE":          "16384",
	"SRV6_SID_MAP_SIZE":             "16384",
	"SRV6_VRF_MAP_SIZE":             "16384",
	"CILIUM_LB_ACT_MAP_MAX_ENTRIES": "65536",
}

func newWriter(n *node) (datapath.ConfigWriter, error) {
	return config.NewHeaderfileWriter(config.WriterParams{
		Log:              logging.DefaultSlogLogger,
		NodeMap:          nodeMap{},
		NodeExtraDefines: []defines.Map{tunnelDefines(n), sizes},
		Sysctl:           sysctl.NewDirectSysctl(afero.NewOsFs(), "/proc"),
	})
}

// complete adds what other releases do not want to know: the address of services, and how they would be balanced.
func complete(configuration *datapath.LocalNodeConfiguration) error {
	user := loadbalancer.DefaultUserConfig
	// Without a number it depends on the machine's memory.
	user.LBSockRevNatEntries = 65536
	balancer, err := loadbalancer.NewConfig(
		logging.DefaultSlogLogger, user, loadbalancer.DeprecatedConfig{}, option.Config)
	configuration.LBConfig, configuration.MaglevConfig = balancer, maglev.DefaultConfig
	configuration.ServiceLoopbackIPv4 = loopbackIPv4.AsSlice()
	return err
}

// logToStderr has nothing to do: the log goes there by itself.
func logToStderr() {}

func (s *stub) Logger(subsystem string) *slog.Logger {
	return logging.DefaultSlogLogger.With("subsys", subsystem, "endpointID", s.StringID())
}
