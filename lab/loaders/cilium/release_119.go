// SPDX-License-Identifier: Apache-2.0

//go:build cilium119

package main

import (
	"context"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/cilium/cilium/pkg/datapath/linux"
	"github.com/cilium/cilium/pkg/datapath/linux/route/reconciler"
	"github.com/cilium/cilium/pkg/datapath/loader"
	"github.com/cilium/cilium/pkg/datapath/tables"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/option"
)

const releaseName = "cilium 1.19-dev of October 2025"

func setRelease(*node) {
	o := option.Config
	o.TracePayloadlenOverlay = defaults.TracePayloadLenOverlay
	// Definitions of maps that only services use, but that are in all objects.
	o.FragmentsMapEntries = fragments
	o.NATMapEntriesGlobal, o.NeighMapEntriesGlobal = 65536, 65536
}

// newLoader returns a loader with the part of an agent that installs the routes of pods: of the table of devices, and
// the one that reconciles routes. The loader itself only says which routes it wants.
func newLoader(writer datapath.ConfigWriter) (*loader.ReloadlabLoader, error) {
	var made *loader.ReloadlabLoader
	// Before anything starts, or all routes of earlier processes are taken for unwanted.
	create := func(
		jobs job.Group,
		db *statedb.DB,
		devices statedb.Table[*tables.Device],
		routes statedb.Table[*reconciler.DesiredRoute],
		manager *reconciler.DesiredRouteManager,
	) {
		made = loader.ReloadlabNew(writer, jobs, db, devices, routes, manager)
	}
	agent := hive.New(
		linux.DevicesControllerCell,
		reconciler.Cell,
		cell.Provide(func() *option.DaemonConfig { return option.Config }),
		cell.Invoke(create),
	)
	err := agent.Start(logging.DefaultSlogLogger, context.Background())
	return made, err
}
