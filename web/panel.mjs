export function panel() {
  return {}
}
