//go:build failpoint

package e2e

// buildTags are those of the crid that is built for the tests: the same as the tests'.
const buildTags = "failpoint"
