// SPDX-License-Identifier: Apache-2.0

//go:build cilium114

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"

	"github.com/cilium/cilium/pkg/cidr"
	"github.com/cilium/cilium/pkg/datapath/linux/config"
	"github.com/cilium/cilium/pkg/datapath/loader"
	"github.com/cilium/cilium/pkg/datapath/loader/metrics"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/mac"
	"github.com/cilium/cilium/pkg/maps/ctmap"
	"github.com/cilium/cilium/pkg/maps/policymap"
	"github.com/cilium/cilium/pkg/mtu"
	ciliumnode "github.com/cilium/cilium/pkg/node"
	"github.com/cilium/cilium/pkg/option"
)

const (
	// What the host's endpoint is called on every node of reloadlab.
	hostEndpointID = 1
	// The sizes of reloadlab's tables of connections, which are preallocated.
	ctEntriesTCP, ctEntriesAny = 32768, 16384
	// MonitorAggregation is "medium", as in a default installation.
	monitorAggregation = 3
)

// release114 is Cilium 1.14, as its main branch was in April 2023 (40935318e344424be1ea96510c96427aef5134c3).
type release114 struct {
	settings settings
	node     *node
	loader   *loader.Loader
	// compiledFor says for what the headers were written.
	compiledFor *mode
}

// mode is what of a request is compiled into all programs.
type mode struct {
	endpointRoutes bool
	devices        []string
}

func newRelease(s settings) release {
	return &release114{settings: s, loader: loader.NewLoader()}
}

func (c *release114) name() string {
	if c.settings.compiles {
		return "cilium 1.14 compiling"
	}
	return "cilium 1.14"
}

// supports lacks rollback, for this release puts back a part of what it has done, and own-calls-maps: it reuses them.
func (c *release114) supports() []string {
	return []string{"pod", "host", "overlay", "endpoint-routes", "unload", "cancel"}
}

func (c *release114) start(n *node) error {
	c.node = n
	logging.DefaultLogger.SetOutput(os.Stderr)
	o := option.Config
	o.StateDir, o.BpfDir = n.State, n.Library
	o.TCFilterPriority = n.FilterPriority
	o.EnableHostFirewall = c.settings.hostFirewall
	if c.settings.compiles {
		return c.configure()
	}
	loader.ReloadlabIgnoreSymbols()
	return nil
}

// configure sets what the headers of the node are made from; an agent takes it from its flags and from Kubernetes.
func (c *release114) configure() error {
	o, n := option.Config, c.node
	o.EnableIPv4, o.EnableIPv6 = true, true
	o.KernelHz = 250
	o.EnableIdentityMark, o.EnableICMPRules = true, true
	// The stack routes, as in reloadlab's own build of these programs.
	o.EnableHostLegacyRouting = true
	o.TracePayloadlen = 128
	o.NodePortAlg = option.NodePortAlgRandom
	o.AuthMapEntries = 524288
	o.MonitorAggregationInterval, o.MonitorAggregationFlags = 5*time.Second, 0x7
	o.CTMapEntriesTimeoutTCP, o.CTMapEntriesTimeoutAny = 6*time.Hour, time.Minute
	o.CTMapEntriesTimeoutSVCTCP, o.CTMapEntriesTimeoutSVCAny = 6*time.Hour, time.Minute
	o.CTMapEntriesTimeoutSVCTCPGrace = 30 * time.Second
	o.CTMapEntriesTimeoutSYN, o.CTMapEntriesTimeoutFIN = time.Minute, 10*time.Second
	ctmap.InitMapInfo(ctEntriesTCP, ctEntriesAny, true, true, false)
	identity.SetLocalNodeID(uint32(identity.ReservedIdentityRemoteNode))
	o.RoutingMode = option.RoutingModeNative
	if n.Tunnel != nil {
		o.RoutingMode = option.RoutingModeTunnel
		o.TunnelProtocol, o.TunnelPort = n.Tunnel.Protocol, n.Tunnel.Port
	}

	ciliumnode.SetEndpointID(hostEndpointID)
	ciliumnode.SetIPv4(n.RouterIPv4.AsSlice())
	ciliumnode.SetIPv6(n.RouterIPv6.AsSlice())
	ciliumnode.SetInternalIPv4Router(n.RouterIPv4.AsSlice())
	ciliumnode.SetIPv6Router(n.RouterIPv6.AsSlice())
	ciliumnode.SetIPv4Loopback(net.IPv4(169, 254, 42, 1))
	var err error
	var range4, range6 *cidr.CIDR
	if range4, err = cidr.ParseCIDR(n.PodCIDRIPv4.String()); err != nil {
		return err
	}
	if range6, err = cidr.ParseCIDR(n.PodCIDRIPv6.String()); err != nil {
		return err
	}
	ciliumnode.SetIPv4AllocRange(range4)
	ciliumnode.SetIPv6NodeRange(range6)
	return nil
}

func (c *release114) reload(ctx context.Context, r *request) ([]span, error) {
	option.Config.SetDevices(r.Devices)
	if c.settings.compiles {
		if err := c.writeHeaders(r); err != nil {
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
	// One of the features for which devices get an egress program. Only the loader asks for it: headers are written.
	option.Config.EnableBandwidthManager = r.EgressDevices

	begin := now()
	if r.Kind == "overlay" {
		err := c.overlay(ctx, r)
		return []span{{"load", begin, now()}}, err
	}
	target, err := newStub(r)
	if err != nil {
		return nil, err
	}
	stats := &metrics.SpanStat{}
	if !c.settings.compiles {
		err = c.loader.ReloadDatapath(ctx, target, stats)
		return []span{{"load", begin, now()}}, err
	}
	err = c.loader.CompileOrLoad(ctx, target, stats)
	// Only durations are known of the three, which follow each other.
	end := now()
	loading := end - stats.BpfLoadProg.Total().Nanoseconds()
	writing := loading - stats.BpfWriteELF.Total().Nanoseconds()
	return []span{{"fetch template", begin, writing}, {"write object", writing, loading}, {"load", loading, end}}, err
}

// overlay ends the process if it has to compile and cannot, as an agent of this release ends then.
func (c *release114) overlay(ctx context.Context, r *request) error {
	if c.node.Tunnel == nil {
		return errors.New("the node has no tunnel")
	}
	if c.settings.compiles {
		return c.loader.ReloadlabOverlay(ctx, c.node.Tunnel.Protocol)
	}
	return loader.ReloadlabOverlayObject(ctx, r.Interface, r.Object)
}

// unload removes routes by the loader, and filters, which in a cluster go with the interface.
func (c *release114) unload(r *request) error {
	target, err := newStub(r)
	if err != nil {
		return err
	}
	c.loader.Unload(target)
	for _, direction := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		err := loader.RemoveTCFilters(r.Interface, direction)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeHeaders writes node_config.h and netdev_config.h, unless those that are there are for the same mode.
func (c *release114) writeHeaders(r *request) error {
	wanted := mode{r.EndpointRoutes, r.Devices}
	if reflect.DeepEqual(c.compiledFor, &wanted) {
		return nil
	}
	o, n := option.Config, c.node
	o.EnableEndpointRoutes = r.EndpointRoutes
	o.EnableBandwidthManager = false
	configuration := &datapath.LocalNodeConfiguration{
		MtuConfig:           mtu.NewConfiguration(0, false, n.Tunnel != nil, false, n.MTU, nil),
		EnableIPv4:          true,
		EnableIPv6:          true,
		EnableEncapsulation: n.Tunnel != nil,
	}
	writer := &config.HeaderfileWriter{}
	var header, netdev bytes.Buffer
	if err := writer.WriteNodeConfig(&header, configuration); err != nil {
		return err
	}
	if err := c.writeInterfaces(&header); err != nil {
		return err
	}
	if err := writer.WriteNetdevConfig(&netdev, &stub{options: endpointOptions()}); err != nil {
		return err
	}
	if err := os.MkdirAll(o.GetGlobalsDir(), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(o.GetNodeConfigPath(), header.Bytes(), 0o640); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, "netdev_config.h"), netdev.Bytes(), 0o640); err != nil {
		return err
	}
	c.loader.ReloadlabInit(writer, configuration)
	c.compiledFor = &wanted
	return nil
}

// writeInterfaces adds to node_config.h what bpf/init.sh of this release adds: interfaces, and the range of ports.
func (c *release114) writeInterfaces(w io.Writer) error {
	ports, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return err
	}
	first := strings.Fields(string(ports))[0]
	define := func(name, value string) { fmt.Fprintf(w, "#define %s %s\n", name, value) }
	addresses := map[string]string{"CILIUM_NET_MAC": c.node.CiliumNet.MAC, "HOST_IFINDEX_MAC": c.node.CiliumHost.MAC}
	for name, text := range addresses {
		address, err := mac.ParseMAC(text)
		if err != nil {
			return err
		}
		define(name, fmt.Sprintf("{ .addr = %s }", mac.CArrayString(net.HardwareAddr(address))))
	}
	define("HOST_IFINDEX", fmt.Sprint(c.node.CiliumNet.Ifindex))
	define("CILIUM_IFINDEX", fmt.Sprint(c.node.CiliumHost.Ifindex))
	define("EPHEMERAL_MIN", first)
	if c.node.Tunnel != nil {
		define("TUNNEL_MODE", "1")
		define("ENCAP_IFINDEX", fmt.Sprint(c.node.Tunnel.Ifindex))
	}
	return nil
}

func endpointOptions() *option.IntOptions {
	library := option.GetEndpointMutableOptionLibrary()
	options := option.NewIntOptions(&library)
	for _, name := range []string{
		option.DropNotify, option.TraceNotify, option.PolicyVerdictNotify, option.ConntrackAccounting,
		option.SourceIPVerification,
	} {
		options.SetBool(name, true)
	}
	options.SetValidated(option.MonitorAggregation, monitorAggregation)
	return options
}

func hasSection(object, name string) (bool, error) {
	file, err := elf.Open(object)
	if err != nil {
		return false, err
	}
	defer file.Close()
	return file.Section(name) != nil, nil
}

// stub is an endpoint as the loader sees one.
type stub struct {
	request *request
	nodeMAC mac.MAC
	options *option.IntOptions
}

func newStub(r *request) (*stub, error) {
	address, err := mac.ParseMAC(r.Endpoint.NodeMAC)
	if err != nil {
		return nil, err
	}
	return &stub{request: r, nodeMAC: address, options: endpointOptions()}, nil
}

func (s *stub) GetID() uint64                        { return uint64(s.request.Endpoint.ID) }
func (s *stub) StringID() string                     { return fmt.Sprint(s.request.Endpoint.ID) }
func (s *stub) InterfaceName() string                { return s.request.Interface }
func (s *stub) StateDir() string                     { return s.request.StateDirectory }
func (s *stub) IsHost() bool                         { return s.request.Kind == "host" }
func (s *stub) GetNodeMAC() mac.MAC                  { return s.nodeMAC }
func (s *stub) GetOptions() *option.IntOptions       { return s.options }
func (s *stub) RequireEndpointRoute() bool           { return s.request.EndpointRoutes && !s.IsHost() }
func (s *stub) RequireEgressProg() bool              { return s.RequireEndpointRoute() }
func (s *stub) RequireRouting() bool                 { return !s.RequireEndpointRoute() }
func (s *stub) RequireARPPassthrough() bool          { return false }
func (s *stub) ConntrackLocalLocked() bool           { return false }
func (s *stub) DisableSIPVerification() bool         { return false }
func (s *stub) GetPolicyVerdictLogFilter() uint32    { return 0xffff }
func (s *stub) GetCIDRPrefixLengths() (v6, v4 []int) { return nil, nil }

func (s *stub) GetIdentity() identity.NumericIdentity {
	return identity.NumericIdentity(s.request.Endpoint.Identity)
}

func (s *stub) GetIdentityLocked() identity.NumericIdentity { return s.GetIdentity() }

// IPv4Address is not valid for the host: its object has no constant for it.
func (s *stub) IPv4Address() netip.Addr {
	if s.IsHost() {
		return netip.Addr{}
	}
	return s.request.Endpoint.IPv4
}

func (s *stub) IPv6Address() netip.Addr {
	if s.IsHost() {
		return netip.Addr{}
	}
	return s.request.Endpoint.IPv6
}

func (s *stub) Logger(subsystem string) *logrus.Entry {
	return logging.DefaultLogger.WithField("subsys", subsystem).WithField("endpointID", s.StringID())
}
