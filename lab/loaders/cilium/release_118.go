// SPDX-License-Identifier: Apache-2.0

//go:build cilium118

package main

import "github.com/cilium/cilium/pkg/option"

const releaseName = "cilium 1.18-dev of May 2025"

func setRelease(*node) { option.Config.FragmentsMapEntries = fragments }
