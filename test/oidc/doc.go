// Package oidc has an OpenID provider that is not ours sign tokens, and both agents use
// them: the example server of github.com/zitadel/oidc, which its own users start from,
// built by the go command at a fixed version. It is no dependency of this module.
//
// In CI (CI=true) it is a failure if it cannot be built, elsewhere a skip.
package oidc
