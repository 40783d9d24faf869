// Package failpoint marks places at which a test can make the program crash,
// fail or wait.
//
// A place is a call
//
//	if err := failpoint.Hit("sandbox.run.network"); err != nil {
//		return err
//	}
//
// named package.operation.step. Without the build tag failpoint Hit is nil and
// compiles to nothing. With it, the environment says what happens:
//
//	CRID_FAILPOINTS="sandbox.run.network=kill;cni.add.before=error#2;image.pull=delay(200ms)"
//	CRID_FAILPOINTS_TRACE=/tmp/hits
//
// kill sends SIGKILL to the program itself, error makes Hit return an error,
// delay(D) makes it wait; #N means at the N-th hit only, otherwise at each. The
// trace gets the name of each hit as a line, so that a test can learn which
// places an operation passes.
package failpoint
