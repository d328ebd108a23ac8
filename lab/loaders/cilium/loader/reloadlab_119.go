// SPDX-License-Identifier: Apache-2.0

//go:build cilium119

package loader

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"github.com/cilium/statedb/reconciler"
	"github.com/vishvananda/netlink"
	"go4.org/netipx"

	routereconciler "github.com/cilium/cilium/pkg/datapath/linux/route/reconciler"
	"github.com/cilium/cilium/pkg/datapath/loader/metrics"
	"github.com/cilium/cilium/pkg/datapath/tables"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/endpointstate"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/promise"
)

// routesTimeout is how long is waited for what the other goroutines have to do.
const routesTimeout = 10 * time.Second

// ReloadlabLoader is a loader with as much of an agent around it as installs the routes of pods.
type ReloadlabLoader struct {
	*loader
	node   *datapath.LocalNodeConfiguration
	routes statedb.Table[*routereconciler.DesiredRoute]
}

// ReloadlabNew returns one; option.Config must be complete, and nothing of the agent started.
//
// Routes that earlier processes have left stay: an agent removes them when all of its endpoints are restored, and nobody
// here knows when they are.
func ReloadlabNew(
	writer datapath.ConfigWriter,
	jobs job.Group,
	db *statedb.DB,
	devices statedb.Table[*tables.Device],
	routes statedb.Table[*routereconciler.DesiredRoute],
	manager *routereconciler.DesiredRouteManager,
) *ReloadlabLoader {
	_, never := promise.New[endpointstate.Restorer]()
	return &ReloadlabLoader{routes: routes, loader: newLoader(Params{
		JobGroup:        jobs,
		Logger:          logging.DefaultSlogLogger,
		CompilationLock: NewCompilationLock(),
		ConfigWriter:    writer,
		RouteManager:    manager,
		DB:              db,
		Devices:         devices,
		EPRestorer:      never,
	})}
}

// ReloadlabReload reloads a pod, the health endpoint or the host. A pod's routes are there when it returns.
func (l *ReloadlabLoader) ReloadlabReload(ctx context.Context, ep datapath.Endpoint, stats *metrics.SpanStat) error {
	if !ep.RequireEndpointRoute() {
		_, err := l.ReloadDatapath(ctx, ep, l.node, stats)
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, routesTimeout)
	defer cancel()
	if err := l.awaitDevice(waiting, ep.GetIfIndex()); err != nil {
		return err
	}
	if _, err := l.ReloadDatapath(ctx, ep, l.node, stats); err != nil {
		return err
	}
	waiting, cancel = context.WithTimeout(ctx, routesTimeout)
	defer cancel()
	stats.BpfLoadProg.Start()
	err := l.awaitRoutes(waiting, ep)
	stats.BpfLoadProg.End(err == nil)
	return err
}

// ReloadlabUnload takes a pod's programs and routes away.
func (l *ReloadlabLoader) ReloadlabUnload(ep datapath.Endpoint) error {
	l.Unload(ep)
	if !ep.RequireEndpointRoute() {
		return nil
	}
	return awaitNoRoutes(ep)
}

// awaitDevice waits until an interface is in the table of devices: the loader only warns of one that is not, and leaves
// its routes out.
func (l *ReloadlabLoader) awaitDevice(ctx context.Context, ifindex int) error {
	for {
		_, _, watch, found := l.devices.GetWatch(l.db.ReadTxn(), tables.DeviceIDIndex.Query(ifindex))
		if found {
			return nil
		}
		select {
		case <-watch:
		case <-ctx.Done():
			return fmt.Errorf("interface %d is not in the table of devices: %w", ifindex, ctx.Err())
		}
	}
}

// awaitRoutes waits until the routes of an endpoint are in the kernel.
func (l *ReloadlabLoader) awaitRoutes(ctx context.Context, ep datapath.Endpoint) error {
	owner, err := l.routeManager.GetOwner("endpoint/" + ep.StringID())
	if err != nil {
		return err
	}
	ours := routereconciler.DesiredRouteIndex.Query(routereconciler.DesiredRouteKey{Owner: owner})
	for {
		found, watch := l.routes.PrefixWatch(l.db.ReadTxn(), ours)
		var missing *routereconciler.DesiredRoute
		for route := range found {
			if route.GetStatus().Kind != reconciler.StatusKindDone {
				missing = route
			}
		}
		if missing == nil {
			return nil
		}
		select {
		case <-watch:
		case <-ctx.Done():
			return fmt.Errorf("route to %s: %s: %w", missing.Prefix, missing.GetStatus(), ctx.Err())
		}
	}
}

// awaitNoRoutes waits until no route leads to an endpoint by its interface. Only the kernel tells: a route that is not
// wanted any more is in no table.
func awaitNoRoutes(ep datapath.Endpoint) error {
	deadline := time.Now().Add(routesTimeout)
	for _, address := range []netip.Addr{ep.IPv4Address(), ep.IPv6Address()} {
		if !address.IsValid() {
			continue
		}
		wanted := &netlink.Route{LinkIndex: ep.GetIfIndex(), Dst: netipx.AddrIPNet(address)}
		for {
			found, err := netlink.RouteListFiltered(
				netlink.FAMILY_ALL, wanted, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
			if err != nil {
				return err
			}
			if len(found) == 0 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the route to %s is still there", address)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}
