package main

import (
	"context"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/cridproject/crid/internal/quiet"
)

// workVerbs begin the names of the RPCs that leave something to collect. The others read:
// kubelet calls them each second, and there would never be quiet. Of these only a scrape of
// all metrics leaves much, 16 MiB with 500 pods, and it comes a few times a minute.
var workVerbs = []string{"RunPod", "Create", "Start", "Stop", "Remove", "Exec", "Pull", "ListPodSandboxMetrics"}

// afterWork has c give memory back when no RPC has done work for a while.
func afterWork(c *quiet.Collector) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		name := path.Base(info.FullMethod)
		if slices.ContainsFunc(workVerbs, func(verb string) bool { return strings.HasPrefix(name, verb) }) {
			defer c.Worked()
		}
		return handler(ctx, req)
	}
}
