// SPDX-License-Identifier: Apache-2.0

//go:build cilium116 || cilium117 || cilium118 || cilium119

package main

import (
	"context"

	"github.com/cilium/cilium/pkg/cidr"
	"github.com/cilium/cilium/pkg/datapath/loader"
	"github.com/cilium/cilium/pkg/datapath/loader/metrics"
	"github.com/cilium/cilium/pkg/datapath/tables"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/maps/nodemap"
	"github.com/cilium/cilium/pkg/option"
)

// moreOptions are options of endpoints that earlier releases do not have: without this one, policies count nothing.
var moreOptions = []string{option.PolicyAccounting}

// adapter drives the releases since 1.16, which always compile, and write no object file for an endpoint: they put the
// constants into a copy of the template in memory.
//
// What differs between them is in their own files: releaseName, setRelease, newWriter, newLoader and complete, and in
// package loader ReloadlabLoader, which is a loader without an agent around it.
type adapter struct {
	settings settings
	node     *node
	loader   *loader.ReloadlabLoader
	headers  headers
}

func newRelease(s settings) release { return &adapter{settings: s} }

func (a *adapter) name() string { return releaseName }

// supports lacks rollback: policy programs, and what was attached before a failure, stay.
func (a *adapter) supports() []string {
	return []string{"pod", "host", "overlay", "endpoint-routes", "unload", "cancel", "tcx", "own-calls-maps"}
}

func (a *adapter) compiles() bool { return true }

func (a *adapter) objects() string { return "none" }

func (a *adapter) start(n *node) error {
	a.node = n
	logToStderr()
	own, err := enterOwnDirectory(n)
	if err != nil {
		return err
	}
	setPlaces(a.settings, n, own)
	setOptions(n)
	o := option.Config
	o.EnableTCX = n.Attach == "tcx"
	o.MaxConnectedClusters = maxConnectedClusters
	o.Opts = endpointOptions()
	setRelease(n)
	writer, err := newWriter(n)
	if err != nil {
		return err
	}
	a.loader, err = newLoader(writer)
	return err
}

func (a *adapter) reload(ctx context.Context, r *request) ([]span, error) {
	defer func() { go collect() }()
	if err := a.headers.forMode(r, func() error { return a.writeHeaders(r) }); err != nil {
		return nil, err
	}
	// Devices get an egress program.
	option.Config.ForceDeviceRequired = r.EgressDevices
	begin := now()
	if r.Kind == "overlay" {
		if a.node.Tunnel == nil {
			return nil, errNoTunnel
		}
		err := a.loader.ReloadlabOverlay(ctx, a.node.Tunnel.Protocol)
		return spansOf(begin, "load"), err
	}
	target, err := newStub(r)
	if err != nil {
		return nil, err
	}
	stats := &metrics.SpanStat{}
	err = a.loader.ReloadlabReload(ctx, target, stats)
	return spansOf(begin, "fetch template", phase{"load", stats.BpfLoadProg.Total()}), err
}

func (a *adapter) unload(r *request) error {
	target, err := newStub(r)
	if err != nil {
		return err
	}
	return a.loader.ReloadlabUnload(target)
}

func (a *adapter) writeHeaders(r *request) error {
	configuration, err := newConfiguration(a.node, r.Devices)
	if err != nil {
		return err
	}
	if err := complete(configuration); err != nil {
		return err
	}
	return a.loader.ReloadlabInit(configuration)
}

func newConfiguration(n *node, names []string) (*datapath.LocalNodeConfiguration, error) {
	range4, err := cidr.ParseCIDR(n.PodCIDRIPv4.String())
	if err != nil {
		return nil, err
	}
	range6, err := cidr.ParseCIDR(n.PodCIDRIPv6.String())
	if err != nil {
		return nil, err
	}
	devices, err := devicesOf(names)
	if err != nil {
		return nil, err
	}
	return &datapath.LocalNodeConfiguration{
		NodeIPv4:            n.RouterIPv4.AsSlice(),
		NodeIPv6:            n.RouterIPv6.AsSlice(),
		CiliumInternalIPv4:  n.RouterIPv4.AsSlice(),
		CiliumInternalIPv6:  n.RouterIPv6.AsSlice(),
		AllocCIDRIPv4:       range4,
		AllocCIDRIPv6:       range6,
		Devices:             devices,
		HostEndpointID:      hostEndpointID,
		DeviceMTU:           n.MTU,
		RouteMTU:            n.MTU,
		EnableIPv4:          true,
		EnableIPv6:          true,
		EnableEncapsulation: n.Tunnel != nil,
	}, nil
}

// devicesOf returns the native devices that are there, as the agent's table of devices has them.
func devicesOf(names []string) ([]*tables.Device, error) {
	links, err := linksOf(names)
	if err != nil {
		return nil, err
	}
	var found []*tables.Device
	for _, link := range links {
		facts := link.Attrs()
		found = append(found, &tables.Device{
			Index:        facts.Index,
			MTU:          facts.MTU,
			Name:         facts.Name,
			HardwareAddr: tables.HardwareAddr(facts.HardwareAddr),
			Type:         link.Type(),
			Selected:     true,
		})
	}
	return found, nil
}

// nodeMap answers what the header wants to know of the map; nobody fills it.
type nodeMap struct{ nodemap.MapV2 }

func (nodeMap) Size() uint32 { return nodemap.DefaultMaxEntries }
