// SPDX-License-Identifier: Apache-2.0

//go:build cilium114 || cilium114_18 || cilium115

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"

	"github.com/cilium/cilium/pkg/cidr"
	"github.com/cilium/cilium/pkg/datapath/loader"
	"github.com/cilium/cilium/pkg/datapath/loader/metrics"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/maps/policymap"
	ciliumnode "github.com/cilium/cilium/pkg/node"
	"github.com/cilium/cilium/pkg/option"
)

// moreOptions are options of endpoints that later releases have.
var moreOptions []string

// adapter drives the releases up to 1.15. They write an object file for each endpoint, or load one that is there.
//
// What differs between them is in the file of each: releaseName, abilities, setRelease, setNodeAddresses, newWriter,
// newMTU, writeInterfaces, askForEgress, unload.
type adapter struct {
	settings settings
	node     *node
	loader   *loader.Loader
	writer   datapath.ConfigWriter
	headers  headers
}

func newRelease(s settings) release { return &adapter{settings: s, loader: loader.NewLoader()} }

func (a *adapter) name() string {
	if a.settings.compiles {
		return releaseName + " compiling"
	}
	return releaseName
}

func (a *adapter) supports() []string { return abilities }

func (a *adapter) compiles() bool { return a.settings.compiles }

func (a *adapter) objects() string { return "" }

func (a *adapter) start(n *node) error {
	a.node = n
	logToStderr()
	if !a.settings.compiles {
		setPlaces(a.settings, n, n.State)
		loader.ReloadlabIgnoreSymbols()
		return nil
	}
	own, err := enterOwnDirectory(n)
	if err != nil {
		return err
	}
	setPlaces(a.settings, n, own)
	setOptions(n)
	option.Config.NodePortAlg = option.NodePortAlgRandom
	identity.SetLocalNodeID(uint32(identity.ReservedIdentityRemoteNode))
	setRelease(n)
	if err := setAddresses(n); err != nil {
		return err
	}
	a.writer, err = newWriter(n)
	return err
}

func setAddresses(n *node) error {
	range4, err := cidr.ParseCIDR(n.PodCIDRIPv4.String())
	if err != nil {
		return err
	}
	range6, err := cidr.ParseCIDR(n.PodCIDRIPv6.String())
	if err != nil {
		return err
	}
	setNodeAddresses(n)
	ciliumnode.SetEndpointID(hostEndpointID)
	ciliumnode.SetInternalIPv4Router(n.RouterIPv4.AsSlice())
	ciliumnode.SetIPv6Router(n.RouterIPv6.AsSlice())
	ciliumnode.SetIPv4Loopback(loopbackIPv4.AsSlice())
	ciliumnode.SetIPv4AllocRange(range4)
	ciliumnode.SetIPv6NodeRange(range6)
	return nil
}

func (a *adapter) reload(ctx context.Context, r *request) ([]span, error) {
	defer func() { go collect() }()
	option.Config.SetDevices(r.Devices)
	if a.settings.compiles {
		// Only the loader asks for egress programs: what asks for them is not to be in the headers.
		askForEgress(false)
		if err := a.headers.forMode(r, a.writeHeaders); err != nil {
			return nil, err
		}
	} else if r.Kind == "host" {
		// The host's object has a policy program only with its firewall; the loader is told, and does not look.
		firewall, err := hasSection(r.Object, policymap.CallString(r.Endpoint.ID))
		if err != nil {
			return nil, err
		}
		option.Config.EnableHostFirewall = firewall
	}
	askForEgress(r.EgressDevices)

	begin := now()
	if r.Kind == "overlay" {
		err := a.overlay(ctx, r)
		return spansOf(begin, "load"), err
	}
	target, err := newStub(r)
	if err != nil {
		return nil, err
	}
	stats := &metrics.SpanStat{}
	if !a.settings.compiles {
		err = a.loader.ReloadDatapath(ctx, target, stats)
		return spansOf(begin, "load"), err
	}
	// An agent's regeneration has a new directory. Here a link to the template of another process is in it, and may lead
	// nowhere: the loader takes that for no link, and fails to make its own.
	link := filepath.Join(target.StateDir(), defaults.TemplatePath)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	err = a.loader.CompileOrLoad(ctx, target, stats)
	return spansOf(begin, "fetch template",
		phase{"write object", stats.BpfWriteELF.Total()}, phase{"load", stats.BpfLoadProg.Total()}), err
}

// overlay ends the process if it has to compile and cannot, as an agent of these releases ends then.
func (a *adapter) overlay(ctx context.Context, r *request) error {
	if a.node.Tunnel == nil {
		return errNoTunnel
	}
	if !a.settings.compiles {
		return loader.ReloadlabOverlayObject(ctx, r.Interface, r.Object)
	}
	if err := a.loader.ReloadlabOverlay(ctx, a.node.Tunnel.Protocol); err != nil {
		return err
	}
	return os.Rename(filepath.Join(option.Config.StateDir, filepath.Base(r.Object)), r.Object)
}

func (a *adapter) unload(r *request) error {
	target, err := newStub(r)
	if err != nil {
		return err
	}
	return unload(a.loader, target)
}

func (a *adapter) writeHeaders() error {
	o, n := option.Config, a.node
	configuration := &datapath.LocalNodeConfiguration{
		MtuConfig:           newMTU(n),
		EnableIPv4:          true,
		EnableIPv6:          true,
		EnableEncapsulation: n.Tunnel != nil,
	}
	var header, netdev bytes.Buffer
	if err := a.writer.WriteNodeConfig(&header, configuration); err != nil {
		return err
	}
	if err := writeInterfaces(&header, n); err != nil {
		return err
	}
	if err := a.writer.WriteNetdevConfig(&netdev, &stub{options: endpointOptions()}); err != nil {
		return err
	}
	if err := os.WriteFile(o.GetNodeConfigPath(), header.Bytes(), 0o640); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, "netdev_config.h"), netdev.Bytes(), 0o640); err != nil {
		return err
	}
	a.loader.ReloadlabInit(a.writer, configuration)
	return nil
}

func hasSection(object, name string) (bool, error) {
	file, err := elf.Open(object)
	if err != nil {
		return false, err
	}
	defer file.Close()
	return file.Section(name) != nil, nil
}
