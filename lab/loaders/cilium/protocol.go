// SPDX-License-Identifier: Apache-2.0

//go:build cilium114 || cilium114_18 || cilium115 || cilium116 || cilium117 || cilium118 || cilium119

// Command reloadlab-loader loads with the loader of the Cilium tree that it is built in, as reloadlab asks it to.
//
// It reads one JSON object a line from its standard input and answers one line on its standard output, as
// docs/loaders.md of reloadlab says. This file is the same for every release of Cilium; what a release wants to be told
// and how its loader is called is in release_*.go, one file a release, chosen by a build tag.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

const (
	protocolVersion = 1
	// The only place where the releases look for pins without being told, and where reloadlab mounts them.
	bpffs = "/sys/fs/bpf"
)

// settings are the options of this command.
type settings struct {
	// compiles has the release write its headers, compile templates and substitute constants itself.
	compiles bool
	// hostFirewall compiles the host's programs with its firewall; only a release that compiles can do that.
	hostFirewall bool
}

type device struct {
	Name    string `json:"name"`
	Ifindex int    `json:"ifindex"`
	MAC     string `json:"mac"`
}

type tunnel struct {
	Protocol  string `json:"protocol"`
	Port      int    `json:"port"`
	Interface string `json:"interface"`
	Ifindex   int    `json:"ifindex"`
}

// node is what stays the same between requests.
type node struct {
	Name           string       `json:"name"`
	State          string       `json:"state"`
	BPFFS          string       `json:"bpffs"`
	Library        string       `json:"library"`
	RouterIPv4     netip.Addr   `json:"router_ipv4"`
	RouterIPv6     netip.Addr   `json:"router_ipv6"`
	PodCIDRIPv4    netip.Prefix `json:"pod_cidr_ipv4"`
	PodCIDRIPv6    netip.Prefix `json:"pod_cidr_ipv6"`
	CiliumHost     device       `json:"cilium_host"`
	CiliumNet      device       `json:"cilium_net"`
	Tunnel         *tunnel      `json:"tunnel"`
	MTU            int          `json:"mtu"`
	FilterPriority uint16       `json:"filter_priority"`
	// Attach is "tc", or "tcx" of a release that has declared it.
	Attach string `json:"attach"`
}

// endpoint is a pod or the host; addresses that it does not have are not valid.
type endpoint struct {
	ID       uint16     `json:"id"`
	Identity uint32     `json:"identity"`
	NodeMAC  string     `json:"node_mac"`
	IPv4     netip.Addr `json:"ipv4"`
	IPv6     netip.Addr `json:"ipv6"`
}

// request asks to load or unload a subject, or is the first one, which describes the node.
type request struct {
	Request string `json:"request"`
	Version int    `json:"version"`
	Node    *node  `json:"node"`

	Kind           string    `json:"kind"`
	Interface      string    `json:"interface"`
	Ifindex        int       `json:"ifindex"`
	Endpoint       *endpoint `json:"endpoint"`
	EndpointRoutes bool      `json:"endpoint_routes"`
	Devices        []string  `json:"devices"`
	EgressDevices  bool      `json:"egress_devices"`
	StateDirectory string    `json:"state_directory"`
	Object         string    `json:"object"`
}

// span is a piece of work; nanoseconds of CLOCK_MONOTONIC.
type span struct {
	Name  string `json:"name"`
	Start int64  `json:"start_ns"`
	End   int64  `json:"end_ns"`
}

type answer struct {
	OK       bool     `json:"ok"`
	Error    string   `json:"error,omitempty"`
	Name     string   `json:"name,omitempty"`
	Supports []string `json:"supports,omitempty"`
	Compiles bool     `json:"compiles,omitempty"`
	Objects  string   `json:"objects,omitempty"`
	Spans    []span   `json:"spans,omitempty"`
}

// release is one release of Cilium.
type release interface {
	name() string
	// supports returns what it can do, in the words of the protocol.
	supports() []string
	// compiles tells whether it compiles itself; releases since 1.16 always do.
	compiles() bool
	// objects returns "none" if there are no object files of what it has loaded, else "".
	objects() string
	// start takes note of the node; nothing on it changes.
	start(n *node) error
	reload(ctx context.Context, r *request) ([]span, error)
	unload(r *request) error
}

func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// handler answers requests, one after the other.
type handler struct {
	release  release
	settings settings
	started  bool
}

func (h *handler) hello(r *request) (answer, error) {
	switch {
	case r.Version != protocolVersion:
		return answer{}, fmt.Errorf("the request is of version %d of the protocol, this is %d", r.Version, protocolVersion)
	case r.Node == nil:
		return answer{}, errors.New("hello describes no node")
	case r.Node.BPFFS != bpffs:
		return answer{}, fmt.Errorf("pins are looked for in %s, not in %s", bpffs, r.Node.BPFFS)
	case h.started:
		return answer{}, errors.New("hello for the second time: one process serves one node")
	}
	if err := h.release.start(r.Node); err != nil {
		return answer{}, err
	}
	h.started = true
	supports := h.release.supports()
	if h.settings.hostFirewall {
		supports = append(supports, "host-firewall")
	}
	return answer{
		Name:     h.release.name(),
		Supports: supports,
		Compiles: h.release.compiles(),
		Objects:  h.release.objects(),
	}, nil
}

// answer does what a request asks for, but loads nothing once ctx is done.
func (h *handler) answer(ctx context.Context, r *request) (answer, error) {
	if r.Request == "hello" {
		return h.hello(r)
	}
	if !h.started {
		return answer{}, fmt.Errorf("%q before hello", r.Request)
	}
	if r.Endpoint == nil && (r.Kind != "overlay" || r.Request == "unload") {
		return answer{}, fmt.Errorf("%s of %q without an endpoint", r.Request, r.Kind)
	}
	switch r.Request {
	case "reload":
		if err := ctx.Err(); err != nil {
			return answer{}, err
		}
		spans, err := h.release.reload(ctx, r)
		return answer{Spans: spans}, err
	case "unload":
		return answer{}, h.release.unload(r)
	}
	return answer{}, fmt.Errorf("no such request: %q", r.Request)
}

// serve answers until it is told to stop, or nobody is there any more.
func (h *handler) serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines, answers := bufio.NewReader(in), json.NewEncoder(out)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var r request
		var a answer
		if err = json.Unmarshal(line, &r); err == nil {
			if r.Request == "stop" {
				return nil
			}
			a, err = h.answer(ctx, &r)
		}
		a.OK = err == nil
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

func main() {
	var s settings
	flag.BoolVar(&s.compiles, "compile", false,
		"write headers, compile and substitute as well, as releases since 1.16 always do; clang and llc must be in PATH")
	flag.BoolVar(&s.hostFirewall, "host-firewall", false, "with -compile: the host has its firewall")
	flag.Parse()
	h := &handler{release: newRelease(s), settings: s}
	if flag.NArg() > 0 || (s.hostFirewall && !h.release.compiles()) {
		flag.Usage()
		os.Exit(2)
	}
	// SIGTERM cancels the request that is being done, and all others: it may come before the request is read. The process
	// ends with its input.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	err := h.serve(ctx, os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
