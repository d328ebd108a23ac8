// SPDX-License-Identifier: Apache-2.0

//go:build cilium114 || cilium114_18 || cilium115 || cilium116 || cilium117

package main

import (
	"os"

	"github.com/sirupsen/logrus"

	"github.com/cilium/cilium/pkg/logging"
)

// logToStderr leaves the standard output to answers.
func logToStderr() { logging.DefaultLogger.SetOutput(os.Stderr) }

func (s *stub) Logger(subsystem string) *logrus.Entry {
	return logging.DefaultLogger.WithField("subsys", subsystem).WithField("endpointID", s.StringID())
}
