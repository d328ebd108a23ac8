// SPDX-License-Identifier: Apache-2.0

//go:build cilium114 || cilium114_18 || cilium115

package loader

import (
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/elf"
)

// ReloadlabInit makes the template cache, or has it know of another configuration of the node.
func (l *Loader) ReloadlabInit(writer datapath.ConfigWriter, config *datapath.LocalNodeConfiguration) {
	l.init(writer, config)
}

// ReloadlabIgnoreSymbols does of init what an object file needs that is there: what it has besides is not warned of.
func ReloadlabIgnoreSymbols() {
	elf.IgnoreSymbolPrefixes(ignoredELFPrefixes)
}
