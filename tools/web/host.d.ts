// What ComfyUI brings: its modules exist only where it serves them, and LiteGraph is a global of its page.
declare var LiteGraph: any
declare module '*/scripts/app.js' {
  export const app: any
}
declare module '*/scripts/api.js' {
  export const api: any
}
