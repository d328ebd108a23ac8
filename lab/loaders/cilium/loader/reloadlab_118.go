// SPDX-License-Identifier: Apache-2.0

//go:build cilium118

package loader

import (
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/logging"
)

// ReloadlabNew returns a loader; option.Config must be complete.
func ReloadlabNew(writer datapath.ConfigWriter) *ReloadlabLoader {
	return &ReloadlabLoader{loader: newLoader(Params{
		Logger:          logging.DefaultSlogLogger,
		CompilationLock: NewCompilationLock(),
		ConfigWriter:    writer,
	})}
}
