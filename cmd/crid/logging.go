package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strconv"

	"k8s.io/klog/v2"
)

// setUpLogging directs klog, which all parts log through, to w.
func setUpLogging(c Config, w io.Writer) error {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"v": strconv.Itoa(c.LogVerbosity), "logtostderr": "true"} {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("set up logging: %w", err)
		}
	}
	if c.LogFormat == logJSON {
		// slog's levels are klog's with the sign turned.
		h := slog.NewJSONHandler(w, &slog.HandlerOptions{AddSource: true, Level: slog.Level(-c.LogVerbosity)})
		klog.SetSlogLogger(slog.New(h))
	}
	return nil
}
