// Package e2e drives the real crid, the real crid-monitor and the real CNI
// plugins over gRPC, as kubelet would, and looks at the machine afterwards.
//
// Each test has a Node of its own: folders, socket, bridge, cgroup parent and a
// registry in this process, so that two runs do not meet. When a test ends its
// pods are removed and nothing may be left: see Node.close.
//
//	go test ./test/e2e -crid bin/crid -monitor bin/crid-monitor -cni-bin bin/cni
//
// Without -crid and -monitor the programs are built first, with the race
// detector. docs: CONTRIBUTING.md, "Run one e2e test".
package e2e
