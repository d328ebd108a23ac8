// SPDX-License-Identifier: Apache-2.0

//go:build cilium114 || cilium114_18 || cilium115 || cilium116 || cilium117 || cilium118 || cilium119

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/mac"
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

var (
	errNoTunnel = errors.New("the node has no tunnel")
	// loopbackIPv4 is the address of services that a pod reaches itself by, as in a default installation.
	loopbackIPv4 = netip.AddrFrom4([4]byte{169, 254, 42, 1})
)

// mode is what of a request, and of the devices that it names, is compiled into all programs.
type mode struct {
	endpointRoutes bool
	devices        []string
}

// modeOf returns the mode of a request: with facts of the devices, for one that was made anew has the same name.
func modeOf(r *request) (*mode, error) {
	links, err := linksOf(r.Devices)
	if err != nil {
		return nil, err
	}
	found := &mode{endpointRoutes: r.EndpointRoutes}
	for _, link := range links {
		facts := link.Attrs()
		device := fmt.Sprintf("%s %d %d %s", facts.Name, facts.Index, facts.MTU, facts.HardwareAddr)
		found.devices = append(found.devices, device)
	}
	return found, nil
}

// linksOf returns the native devices that are there.
func linksOf(names []string) ([]netlink.Link, error) {
	var found []netlink.Link
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, link)
	}
	return found, nil
}

// headers remembers for which mode the headers of the node were written.
type headers struct{ mode *mode }

// forMode calls write for the mode of a request, unless the headers that are there are for the same one.
func (h *headers) forMode(r *request, write func() error) error {
	wanted, err := modeOf(r)
	if err != nil || reflect.DeepEqual(h.mode, wanted) {
		return err
	}
	// Half of them may be written.
	h.mode = nil
	option.Config.EnableEndpointRoutes = r.EndpointRoutes
	if err := os.MkdirAll(filepath.Join(option.Config.StateDir, "globals"), 0o750); err != nil {
		return err
	}
	if err := write(); err != nil {
		return err
	}
	h.mode = wanted
	return nil
}

// enterOwnDirectory makes a directory of the node that no other process of this command works in, enters it and returns
// it. Headers and templates are written there: several processes load for one node at a time.
func enterOwnDirectory(n *node) (string, error) {
	for i := 1; ; i++ {
		path := filepath.Join(n.State, fmt.Sprintf("cilium-%d", i))
		if err := os.MkdirAll(path, 0o750); err != nil {
			return "", err
		}
		descriptor, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		// The lock ends with the process: the next one takes the directory over.
		err = unix.Flock(descriptor, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			unix.Close(descriptor)
			continue
		}
		if err != nil {
			return "", err
		}
		return path, os.Chdir(path)
	}
}

// setPlaces sets where things are, and what is attached how.
func setPlaces(s settings, n *node, state string) {
	o := option.Config
	o.StateDir, o.BpfDir = state, n.Library
	o.TCFilterPriority = n.FilterPriority
	o.EnableHostFirewall = s.hostFirewall
}

// setOptions sets what the headers of the node are made from; an agent takes it from its flags and from Kubernetes.
func setOptions(n *node) {
	o := option.Config
	o.EnableIPv4, o.EnableIPv6 = true, true
	o.KernelHz = 250
	o.EnableIdentityMark, o.EnableICMPRules = true, true
	// The stack routes, as in reloadlab's own build of these programs.
	o.EnableHostLegacyRouting = true
	o.TracePayloadlen = 128
	o.AuthMapEntries = 524288
	o.MonitorAggregationInterval, o.MonitorAggregationFlags = 5*time.Second, 0x7
	o.CTMapEntriesTimeoutTCP, o.CTMapEntriesTimeoutAny = 6*time.Hour, time.Minute
	o.CTMapEntriesTimeoutSVCTCP, o.CTMapEntriesTimeoutSVCAny = 6*time.Hour, time.Minute
	o.CTMapEntriesTimeoutSVCTCPGrace = 30 * time.Second
	o.CTMapEntriesTimeoutSYN, o.CTMapEntriesTimeoutFIN = time.Minute, 10*time.Second
	o.CTMapEntriesGlobalTCP, o.CTMapEntriesGlobalAny = ctEntriesTCP, ctEntriesAny
	o.RoutingMode = option.RoutingModeNative
	if n.Tunnel != nil {
		o.RoutingMode = option.RoutingModeTunnel
	}
}

// endpointOptions returns what an agent sets by default, for endpoints and for the programs of the node.
func endpointOptions() *option.IntOptions {
	library := option.GetEndpointMutableOptionLibrary()
	options := option.NewIntOptions(&library)
	for _, name := range append([]string{
		option.DropNotify, option.TraceNotify, option.PolicyVerdictNotify, option.ConntrackAccounting,
		option.SourceIPVerification,
	}, moreOptions...) {
		options.SetBool(name, true)
	}
	options.SetValidated(option.MonitorAggregation, monitorAggregation)
	return options
}

// collect closes what a release leaves to the garbage collector: up to 1.15 a map that a load has replaced, with all
// programs in it; since 1.16 programs that are in an object and that nothing calls. An agent that has nothing else to do
// collects them after two minutes. The second time is for those to which the request itself still referred at the first.
func collect() {
	runtime.GC()
	time.Sleep(100 * time.Millisecond)
	runtime.GC()
}

// phase is a piece of a request of which only the duration is known.
type phase struct {
	name     string
	duration time.Duration
}

// spansOf returns the spans of pieces that follow each other: first from begin on, the others up to now.
func spansOf(begin int64, first string, others ...phase) []span {
	end := now()
	spans := make([]span, len(others)+1)
	for i := len(others) - 1; i >= 0; i-- {
		start := end - others[i].duration.Nanoseconds()
		spans[i+1] = span{others[i].name, start, end}
		end = start
	}
	spans[0] = span{first, begin, end}
	return spans
}

// stub is an endpoint as a loader sees one. No release asks for all of its methods.
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
func (s *stub) GetIfIndex() int                      { return s.request.Ifindex }
func (s *stub) GetEndpointNetNsCookie() uint64       { return 0 }
func (s *stub) GetPropertyValue(string) any          { return nil }

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
