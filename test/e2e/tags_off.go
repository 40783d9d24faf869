//go:build !failpoint

package e2e

const buildTags = ""
